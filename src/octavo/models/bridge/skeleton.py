"""From a configuration to the module tree that transformers makes of it, without weights.

What cannot be served is refused here where the configuration or the classes show it; `proof` finds the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from octavo.base.errors import CheckpointError
from octavo.models.bridge.attention import NAME, register
from octavo.models.bridge.refusal import NO_INTERFACE, refused

#: Rotations that follow the longest sequence of a step: a reply would depend on the others.
_MOVING_ROPES: Final = ("dynamic", "longrope")
_MAX_POSITIONS: Final = 1 << 24


@dataclass(frozen=True)
class Skeleton:
    """How a configuration's module tree is made: `make` makes it anew, its parameters on the meta device, its buffers
    on the CPU."""

    make: Callable[[], Any]  # of transformers' PreTrainedModel
    config: Any  # its text part
    model_type: str
    source: str  # for messages


def skeleton(values: dict[str, Any], source: str, dtype: torch.dtype, *, trust_remote_code: bool) -> Skeleton:
    """`dtype`: of activations. Raises CheckpointError for a model that cannot be served, with the reason."""
    register()
    values = {key: value for key, value in values.items() if key != "quantization_config"}  # the tensors' own matter
    config = _config(values, source, trust_remote_code)
    model_class = _model_class(values, config, source)
    text = config.get_text_config(decoder=True)
    name = model_class.__name__
    if config.is_encoder_decoder or getattr(config, "add_cross_attention", False):
        raise refused(source, name, "it attends to an encoder, and the KV cache holds what is generated only")
    if getattr(model_class, "_is_stateful", False):
        raise refused(source, name, "its layers keep a state of their own, and the KV cache holds keys and values only")
    if not getattr(text, "is_causal", True):
        raise refused(source, name, "its attention sees later tokens too")
    for rope in _ropes(text):
        if rope in _MOVING_ROPES:
            raise refused(source, name, f"its positions ({rope} rope) change with the longest sequence of a step")

    def make() -> Any:
        try:
            with _without_weights():
                model = model_class._from_config(
                    config, dtype=dtype, attn_implementation=NAME, experts_implementation=NAME
                )
        except (ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
            if not model_class._supports_attention_backend:
                raise refused(source, name, NO_INTERFACE) from error
            raise refused(source, name, f"transformers does not build it: {_first_line(error)}") from error
        model.tie_weights()
        return model.eval().requires_grad_(False)

    return Skeleton(make, text, str(config.model_type), source)


def max_positions(config: Any, asked: int | None, source: str) -> int:
    """The longest context of a configuration's text part."""
    found = getattr(config, "max_position_embeddings", None) or asked
    if type(found) is not int or not 1 <= found <= _MAX_POSITIONS:
        raise CheckpointError(
            f"{source}: max_position_embeddings = {str(found)[:40]} is no context length; give one with --max-model-len"
        )
    return found


def _config(values: dict[str, Any], source: str, trust_remote_code: bool) -> Any:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    model_type, code = values.get("model_type"), values.get("auto_map")
    try:
        if model_type in CONFIG_MAPPING:
            return CONFIG_MAPPING[model_type].from_dict(dict(values))
        if not isinstance(code, dict) or "AutoConfig" not in code or "AutoModelForCausalLM" not in code:
            raise CheckpointError(f"{source}: transformers has no model_type {str(model_type)[:80]!r}")
        if not trust_remote_code:
            raise CheckpointError(
                f"{source}: the model_type {str(model_type)[:80]!r} is in neither octavo nor transformers; the files "
                f"bring code for it ({code['AutoModelForCausalLM']}). --trust-remote-code runs it, in the engine's "
                f"process: read it first."
            )
        return _dynamic(code["AutoConfig"], source).from_dict(dict(values))
    except CheckpointError:
        raise
    except Exception as error:  # whatever classes and their validation raise
        raise CheckpointError(f"{source}: transformers refuses config.json: {_first_line(error)}") from error


def _model_class(values: dict[str, Any], config: Any, source: str) -> Any:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    if type(config).__module__.startswith("transformers_modules."):
        return _dynamic(values["auto_map"]["AutoModelForCausalLM"], source)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise CheckpointError(f"{source}: transformers has no causal language model of type {config.model_type!r}")
    found = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    classes = found if isinstance(found, tuple) else (found,)
    names = values.get("architectures") or [classes[0].__name__]
    for each in classes:
        if names == [each.__name__]:
            return each
    raise CheckpointError(
        f"{source}: the architecture {str(names)[:80]} is no causal language model of transformers; for the type "
        f"{config.model_type!r} that is {classes[0].__name__}"
    )


def _dynamic(reference: str, source: str) -> Any:
    """A class of the code beside a model's files."""
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    return get_class_from_dynamic_module(reference, source, local_files_only=True)


def _ropes(config: Any) -> Iterator[str]:
    """The kinds of rotation, of which layers may have different ones."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    if isinstance(rope, dict):
        for each in (rope, *(value for value in rope.values() if isinstance(value, dict))):
            yield str(each.get("rope_type") or each.get("type") or "default")


@contextmanager
def _without_weights() -> Iterator[None]:
    """Parameters that are made go to the meta device at once, and nothing initializes them. Buffers stay: tables of
    rotations are computed while a tree is made, and are in no checkpoint."""
    from transformers.initialization import no_init_weights

    original = nn.Module.register_parameter

    def register_parameter(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and param.device.type != "meta":
            param = nn.Parameter(param.detach().to("meta"), requires_grad=False)
        original(module, name, param)

    nn.Module.register_parameter = register_parameter  # type: ignore[method-assign, assignment]
    try:
        with no_init_weights():
            yield
    finally:
        nn.Module.register_parameter = original  # type: ignore[method-assign]


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300] if str(error).strip() else ''}"
