"""A model as it is served: what turns a caller's wish into requests of the engine, and deltas into events.

The server's APIs, `octavo.LLM` and the batch runner use this and nothing below, so that they check and answer alike.
"""
