"""The workflow of compressing a trained model: plan, compress_, recalibrate_, report, fold_, and files.

- What a layer is called with, and what it costs: `tracing`, `costs`.
- Plans: `plans` (what they say), `forms` (how a layer is made), `search`, `budgets`, `planning` (`plan`),
  `tolerance` (by a score).
- Carrying them out: `applying` (`compress_`), `recalibration`, `folding`; `reports` compares.
- Kept and read again: `structure` (tensors, and what layers are made of), `files` (safetensors).
"""
