"""A drafter that knows the replies, and often proposes something else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.harness import Reply
from octavo.core.request import Request


class Oracle:
    """Each proposal is made in the next of `ways`, over and over.

    right: what follows. none: nothing. wrong: other tokens. half: another token between right ones. long: what follows,
    and then on beyond the end. junk: ids that are no tokens. stops: what would end the request.
    """

    def __init__(
        self,
        replies: Mapping[int, Reply],
        ways: Sequence[str] = ("right", "none", "wrong", "half", "long", "junk", "stops"),
    ) -> None:
        self.replies = replies
        self.ways = ways
        self.num_calls = self.num_accepted = self.num_rejected = 0

    def wants(self, request: Request) -> bool:
        return True

    def propose(self, request: Request) -> list[int]:
        way = self.ways[self.num_calls % len(self.ways)]
        self.num_calls += 1
        length = 1 + self.num_calls % 5
        known = self.replies[request.request_id].token_ids[request.num_output_tokens :]
        right = known[:length]
        match way:
            case "none":
                return []
            case "wrong":
                return [token ^ 1 for token in right]
            case "half":
                return [*right[: length // 2], 11, *right[length // 2 :]]
            case "long":
                return [*known, *range(5, 40)]
            case "junk":
                return [*right[:1], -1, 1 << 40, *right[1:]]
            case "stops":
                return [*right[:1], *request.stop_ids, *request.eos_token_ids, *right[1:]]
        return right

    def accepted(self, request: Request, num_proposed: int, num_accepted: int) -> None:
        self.num_accepted += num_accepted
        self.num_rejected += num_proposed - num_accepted
