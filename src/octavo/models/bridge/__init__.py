"""Decoders that transformers builds, with octavo's matrices, norms, experts and paged attention in its modules' place.

skeleton    the module tree of a configuration, without weights; what cannot be served, and why
declare     which of the table's operations takes which weight
tensors     where the weights are in a checkpoint, by transformers' own conversions
modules     what stands in the place of its modules
attention   what stands in the place of its attention
proof       which attentions a step calls, and that a row depends on no other row
model       a step
"""
