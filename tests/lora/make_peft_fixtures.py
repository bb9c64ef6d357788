"""Builds tests/fixtures/peft: adapters as PEFT saves them, and transformers' logits with them.

Not a test, and not needed to run them: it wants PyTorch, which this project does not depend on.
In an environment of its own:

    pip install torch peft transformers
    python tests/lora/make_peft_fixtures.py

Last built with torch 2.13.0, transformers 5.23.0, peft 0.21.2.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from peft_world import CASES, FOLDER, peft_adapter, quiet

FILES = ("adapter_config.json", "adapter_model.safetensors")
# What the aliases of this package are, and one that names and lays out its layers otherwise.
ARCHITECTURES = ("llama", "mistral", "qwen2", "phi", "phi3", "gpt2")


def module_names(architecture: str) -> list[str]:
    """Paths of all linear layers and embeddings in transformers' model."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    small = {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 32, "pad_token_id": 0}
    small |= {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 24}
    config = AutoConfig.for_model(architecture, **small)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    kinds = (torch.nn.Linear, torch.nn.Embedding, Conv1D)
    return [name for name, module in model.named_modules() if isinstance(module, kinds)]


def main() -> int:
    """Write the folder."""
    logits = {}
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            logits[case] = peft_adapter(case, Path(folder))
            (FOLDER / case).mkdir(parents=True, exist_ok=True)
            for name in FILES:
                shutil.copy(Path(folder) / name, FOLDER / case / name)
    np.savez_compressed(FOLDER / "logits.npz", **logits)
    with quiet():
        names = {kind: module_names(kind) for kind in ARCHITECTURES}
    (FOLDER / "module_names.json").write_text(json.dumps(names, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
