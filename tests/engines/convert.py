"""Converts the test model with llama.cpp's own converter.

The converter knows tokenizers by a hash of what they do to one text; a tokenizer trained here is
not in its list, so this names the splitting instead. Call: `convert.py SOURCES MODEL --outfile F`,
SOURCES being the llama.cpp source folder.
"""

import importlib
import sys


def main() -> None:
    """Run the converter of the folder that the first argument names on the others."""
    sources = sys.argv.pop(1)
    sys.path[:0] = [sources, f"{sources}/gguf-py"]
    base = importlib.import_module("conversion.base")
    base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
    importlib.import_module("convert_hf_to_gguf").main()


if __name__ == "__main__":
    main()
