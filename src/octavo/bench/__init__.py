"""What `octavo bench` measures, how it counts, and what it writes.

`serve` loads any server with an OpenAI-compatible API and needs nothing of the engine; `offline` runs a model through
`octavo.LLM`; `kernels` times single operations and is the one module here that imports torch. Every result carries a
stamp of the machine (`machine`), and rates stand beside what it can do at best (`limits`).
"""
