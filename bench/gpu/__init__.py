"""Checks and measurements of octavo on an NVIDIA GPU; `bench/gpu.sh` runs them.

Pure arithmetic, without torch, and tested: shapes, workloads, roofline, rows, timeline, plan. Each stage is a module
`stage_*` that runs in a process of its own (`stage.py`), appends rows to a file as it finds them, and may crash
without harm to the others. `main.py` starts the stages while the budget lasts and prints the table.
"""
