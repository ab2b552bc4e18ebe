"""The model that comes with Axion: small, real, and trained by the code in this folder.

`MODEL_DIR` is an ordinary Hugging Face folder. `python -m axion.demo.train` makes it again from
nothing, `python -m axion.demo.evaluate` measures it.
"""

from __future__ import annotations

from pathlib import Path

MODEL_DIR = Path(__file__).parent / "model"
