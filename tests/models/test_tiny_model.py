"""The tiny model for smoke runs loads, writes, trains on any text, and is the same every time."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest

import mlx_companion as mc
from mlx_companion.models.tiny import tiny_model


def test_it_loads_and_writes(tmp_path: Path) -> None:
    lm = mc.load(tiny_model(tmp_path / "tiny"))
    assert len(str(mc.generate(lm, "Hello é \U0001f600", max_tokens=5)).encode()) <= 5 * 4
    replies = mc.batch_generate(lm, ["a", "bb"], max_tokens=3)
    assert len(replies) == 2


@pytest.mark.parametrize("text", ["plain", "é 你好 \U0001f600", "a\nb\tc", " \x01"])
def test_any_text_goes_through_its_tokenizer(tmp_path: Path, text: str) -> None:
    tokenizer = mc.load(tiny_model(tmp_path / "tiny")).tokenizer
    tokens = tokenizer.encode(text, add_special_tokens=False)
    assert len(tokens) == len(text.encode())
    assert tokenizer.decode(tokens) == text


def test_turns_end_where_the_template_ends_them(tmp_path: Path) -> None:
    lm = mc.load(tiny_model(tmp_path / "tiny"))
    chat = [{"role": "user", "content": "hi"}]
    text = lm.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert lm.tokenizer.convert_tokens_to_ids("<|im_end|>") in lm.tokenizer.eos_token_ids


def test_the_seed_makes_the_model(tmp_path: Path) -> None:
    one, same, other = (
        mc.load(tiny_model(tmp_path / name, seed=seed)).base_sha256
        for name, seed in (("one", 1), ("same", 1), ("other", 2))
    )
    assert one == same != other


def test_random_numbers_of_others_stay_as_they_were(tmp_path: Path) -> None:
    before = mx.random.state[0].tolist()
    tiny_model(tmp_path / "tiny", seed=3)
    assert mx.random.state[0].tolist() == before


def test_it_is_written_once(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "tiny")
    (folder / "note").touch()
    assert tiny_model(folder, seed=7) == folder
    assert (folder / "note").exists()


def test_it_can_be_packed(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "tiny", bits=4)
    packed = mc.load(folder, dequantize=False)
    plain = mc.load(folder, dequantize=True)
    assert isinstance(packed.model.layers[0].mlp.up_proj, nn.QuantizedLinear)
    assert type(plain.model.layers[0].mlp.up_proj) is nn.Linear
    tokens = mx.array([[1, 50, 60, 70]])
    assert mx.allclose(packed.model(tokens), plain.model(tokens), atol=1e-4)
