"""The input batch: every scheduled token is read from its request's state and written to its request's block."""

from octavo.base.params import SamplingParams
from octavo.wire.step import CachedRequestData, NewRequestData
from octavo.worker.input_batch import build_batch
from octavo.worker.request_states import RequestStates

BLOCK_SIZE = 4


def new_request(
    slot: int, tokens: list[int], block_ids: list[int], computed: int = 0, **params: object
) -> NewRequestData:
    return NewRequestData(
        slot=slot,
        request_id=slot,
        prompt_token_ids=tokens,
        num_prompt_tokens=len(tokens),
        params=SamplingParams(**params),  # type: ignore[arg-type]
        eos_token_ids=(2,),
        block_ids=[block_ids],
        num_computed_tokens=computed,
        sample_index=0,
        sampling_seed=7,
    )


def test_a_mixed_batch_gathers_prefill_chunk_and_decode() -> None:
    states = RequestStates(max_num_seqs=4, max_model_len=32, block_size=BLOCK_SIZE, vocab_size=64)
    states.add(new_request(2, [10, 11, 12, 13, 14, 15], [5, 9], computed=1))
    states.add(new_request(0, [20, 21, 22], [7]))
    states.append_token(0, 23)
    states.update(CachedRequestData(slot=0, new_block_ids=[[3]], num_computed_tokens=3))

    batch = build_batch(states, {2: 4, 0: 1}, BLOCK_SIZE)

    # The sequence that decodes comes first.
    assert batch.slots.tolist() == [0, 2] and batch.num_decodes == 1
    assert batch.token_ids.tolist() == [23, 11, 12, 13, 14]
    assert batch.positions.tolist() == [3, 1, 2, 3, 4]
    assert batch.slot_mapping.tolist() == [[7 * 4 + 3, 5 * 4 + 1, 5 * 4 + 2, 5 * 4 + 3, 9 * 4]]
    assert batch.query_start_loc.tolist() == [0, 1, 5]
    assert batch.seq_lens.tolist() == [4, 5]
    assert batch.block_tables.tolist() == [[[7, 3], [5, 9]]]
    # Slot 2 has one prompt token left, so only slot 0 samples, from its own row.
    assert batch.logits_rows.tolist() == [0]
    assert batch.rows.slots.tolist() == [0]


def test_a_slot_samples_exactly_when_its_known_tokens_are_computed() -> None:
    states = RequestStates(max_num_seqs=2, max_model_len=32, block_size=BLOCK_SIZE, vocab_size=64)
    states.add(new_request(1, [1, 2, 3, 4, 5], [1, 2]))
    assert build_batch(states, {1: 4}, BLOCK_SIZE).rows.slots.tolist() == []
    states.update(CachedRequestData(slot=1, new_block_ids=[], num_computed_tokens=4))
    assert build_batch(states, {1: 1}, BLOCK_SIZE).rows.slots.tolist() == [1]


def test_a_slot_taken_over_keeps_nothing_of_its_last_request() -> None:
    states = RequestStates(max_num_seqs=1, max_model_len=32, block_size=BLOCK_SIZE, vocab_size=64)
    states.add(new_request(0, [1] * 9, [4, 5, 6], presence_penalty=1.0, logprobs=3, logit_bias={1: 2.0}))
    states.append_token(0, 8)
    states.remove(0)
    states.add(new_request(0, [3, 4], [9]))
    batch = build_batch(states, {0: 2}, BLOCK_SIZE)
    assert batch.token_ids.tolist() == [3, 4]
    assert batch.block_tables.tolist() == [[[9]]]
    assert not states.special and not states.logprobs
    assert states.draw_positions(batch.rows).tolist() == [0]


def test_a_request_resumed_after_preemption_counts_its_outputs_as_outputs() -> None:
    states = RequestStates(max_num_seqs=1, max_model_len=32, block_size=BLOCK_SIZE, vocab_size=64)
    request = new_request(0, [1, 2, 3, 7, 7], [1, 2], frequency_penalty=0.5)
    request.num_prompt_tokens = 3
    states.add(request)
    assert states.draw_positions(build_batch(states, {0: 5}, BLOCK_SIZE).rows).tolist() == [2]
    penalties = states.special[0].penalties
    assert penalties is not None
    assert (penalties.prompt_ids, penalties.output_counts) == ({1, 2, 3}, {7: 2})


def test_a_group_with_a_window_forgets_the_blocks_that_no_token_of_the_step_sees() -> None:
    """Others may have them by now: what a kernel reads of them without need must be finite, which the null block is."""
    states = RequestStates(max_num_seqs=2, max_model_len=64, block_size=BLOCK_SIZE, vocab_size=64, windows=(0, 6))
    new = new_request(1, list(range(18)), [])
    new.block_ids = [[1, 2, 3, 4], [5, 6, 7, 8]]  # of 16 tokens so far
    states.add(new)
    states.update(CachedRequestData(slot=1, new_block_ids=[], num_computed_tokens=10))
    batch = build_batch(states, {1: 2}, BLOCK_SIZE)
    assert batch.slot_mapping.flags.c_contiguous and batch.block_tables.flags.c_contiguous
    # Token 10 sees 5 and what follows it: block 1 of the second group begins at token 4.
    assert batch.block_tables.tolist() == [[[1, 2, 3]], [[0, 6, 7]]]
    assert batch.slot_mapping.tolist() == [[3 * 4 + 2, 3 * 4 + 3], [7 * 4 + 2, 7 * 4 + 3]]
    states.update(CachedRequestData(slot=1, new_block_ids=[[9], [10]], num_computed_tokens=16))
    batch = build_batch(states, {1: 1}, BLOCK_SIZE)
    assert batch.block_tables.tolist() == [[[1, 2, 3, 4, 9]], [[0, 0, 7, 8, 10]]]
    states.add(new_request(1, [1] * 5, [11, 12]))  # another request has the slot: what lies behind a window is its own
    assert states.block_tables[:, 1, :2].tolist() == [[11, 12], [0, 0]]
