"""Configurations and names of transformers and Meta, and what is said when they do not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from blt_checkpoints import write_meta, write_pth
from blt_fixtures import CASES, STEP, Case, read
from mlx.utils import tree_flatten
from safetensors.numpy import load_file, save_file

from mlx_companion.blt.byte_lm import ByteLM
from mlx_companion.blt.config import BlockConfig, BltConfig, HashConfig, PatchConfig
from mlx_companion.blt.hf_config import from_hf, patches_in_transformers, to_hf
from mlx_companion.blt.load import load
from mlx_companion.blt.model import BltModel
from mlx_companion.errors import ConfigError, ModelNotFoundError, WeightsError


@pytest.fixture
def case() -> Case:
    return read("k2_projected_window")


def refusal(folder: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        load(folder)
    assert str(folder) in str(caught.value)
    # The folder's name holds words of the test's.
    return str(caught.value).replace(str(folder), "")


def same_parameters(one: Any, other: Any) -> None:
    first, second = (dict(tree_flatten(model.parameters())) for model in (one, other))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert mx.array_equal(value, second[name]), name


class TestConfigOfTransformers:
    @pytest.mark.parametrize("name", CASES)
    def test_there_and_back(self, name: str) -> None:
        config = from_hf(read(name).config)
        assert from_hf(json.loads(json.dumps(to_hf(config)))) == config

    def test_an_empty_one_is_the_released_model(self) -> None:
        """transformers' defaults are the 1B model's, as ours are."""
        assert from_hf({"model_type": "blt"}) == BltConfig()

    def test_fields(self) -> None:
        tree = {
            "model_type": "blt",
            "cross_attn_k": 4,
            "local_attention_window_len": None,
            "patching_threshold": 2.5,
            "max_patch_length": 9,
            "encoder_hash_byte_group_size": [2, 4],
            "encoder_hash_byte_group_vocab": 99,
            "encoder_hash_byte_group_nb_functions": 3,
            "max_position_embeddings": 77,
            "encoder_config": {
                "hidden_size": 48,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "num_hidden_layers": 3,
                "cross_attn_all_layers": True,
                "rope_theta": 123.0,
                "rms_norm_eps": 1e-3,
            },
            "decoder_config": {
                "hidden_size": 48,
                "num_attention_heads": 4,
                "num_key_value_heads": 4,
                "num_hidden_layers": 2,
                "intermediate_size": 10,
                "cross_attn_all_layers": False,
                "rope_parameters": {"rope_type": "default", "rope_theta": 7.0},
            },
            "patcher_config": {"sliding_window": None, "hidden_size": 24, "intermediate_size": 8},
        }
        config = from_hf(tree)
        assert config.encoder == BlockConfig(48, 3, 4, 128, None, 2, 123.0, 1e-3)
        assert config.decoder == BlockConfig(48, 2, 4, 10, None, None, 7.0)
        assert config.latent == BltConfig().latent
        assert config.entropy == BlockConfig(24, 14, 12, 8, None, None, 10000.0)
        assert config.hash == HashConfig((2, 4), 3, 99)
        assert config.patching == PatchConfig(threshold=2.5, max_length=9)
        assert (config.cross_k, config.context) == (4, 77)
        assert (config.cross_all_encoder, config.cross_all_decoder) == (True, False)

    def test_without_an_entropy_model_it_goes_byte_by_byte(self) -> None:
        config = from_hf({"model_type": "blt", "patch_in_forward": False})
        assert (config.entropy, config.patching.mode) == (None, "byte")

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"model_type": "llama"}, "llama"),
            ({"patching_mode": "bpe"}, "bpe"),
            ({"encoder_config": {"hidden_act": "gelu"}}, "gelu"),
            ({"global_config": {"rope_parameters": {"rope_type": "yarn"}}}, "yarn"),
            ({"patcher_config": {"rope_scaling": {"type": "linear"}}}, "linear"),
            ({"decoder_config": {"cross_attn_k": 3}}, "cross_attn_k"),
            ({"encoder_config": {"hidden_size_global": 9}}, "hidden_size_global"),
            ({"encoder_config": {"hidden_size": "wide"}}, "wide"),
            ({"encoder_config": [1]}, "encoder_config"),
            ({"cross_attn_k": None}, "cross_k"),
            ({"encoder_config": {"num_attention_heads": 7}}, "heads"),
        ],
    )
    def test_what_is_refused(self, tmp_path: Path, change: dict, words: str) -> None:
        tree = {"model_type": "blt"} | change
        (tmp_path / "config.json").write_text(json.dumps(tree))
        (tmp_path / "model.safetensors").write_bytes(b"")
        assert words in refusal(tmp_path)

    def test_what_transformers_cannot_say(self) -> None:
        config = BltConfig()
        with pytest.raises(ConfigError, match="window"):
            to_hf(replace(config, encoder=replace(config.encoder, window=3)))
        with pytest.raises(ConfigError, match="window"):
            to_hf(replace(config, latent=replace(config.latent, window=3)))

    def test_an_infinite_threshold_is_valid_json(self) -> None:
        config = replace(BltConfig(), patching=PatchConfig(threshold=float("inf")))
        text = json.dumps(to_hf(config), allow_nan=False)
        assert from_hf(json.loads(text)).patching.threshold > 1e29

    @pytest.mark.parametrize(
        ("patching", "known"),
        [
            (PatchConfig(), True),
            (PatchConfig("byte"), True),
            (PatchConfig("byte", max_length=3), True),
            (PatchConfig(max_length=8), False),
            (PatchConfig("space"), False),
            (PatchConfig("monotonic"), False),
        ],
    )
    def test_whether_transformers_patches_alike(self, patching: PatchConfig, known: bool) -> None:
        config = replace(BltConfig(), patching=patching)
        assert patches_in_transformers(config) is known
        assert from_hf(to_hf(config)).patching == patching


class TestMeta:
    @pytest.mark.parametrize("tables", ["split", "fused"])
    @pytest.mark.parametrize("pth", [False, True])
    def test_the_same_model_as_from_transformers(
        self, tmp_path: Path, case: Case, tables: Any, pth: bool
    ) -> None:
        theirs = load(write_meta(case, tmp_path / "meta", tables=tables, pth=pth))
        hf = load(case.write_hf(tmp_path / "hf"))
        assert theirs.config == hf.config
        same_parameters(theirs, hf)

    @pytest.mark.parametrize("name", ["k2", "k4", "k4_window", "k2_projected"])
    def test_logits(self, tmp_path: Path, name: str) -> None:
        """Shared key-value heads, one cross-attention or many, no projection: told by weights."""
        case = read(name)
        model = load(write_meta(case, tmp_path / "meta", settings="model", pth=True))
        found = np.array(model(mx.array(case.ids)))
        np.testing.assert_allclose(found[..., ::STEP], case.logits, atol=1e-5)

    def test_settings_are_read(self, tmp_path: Path, case: Case) -> None:
        folder = write_meta(case, tmp_path / "meta")
        path = folder / "entropy_model" / "params.json"
        tree = json.loads(path.read_text())
        expectations: list[tuple[dict, PatchConfig]] = [
            ({"threshold": 1.25}, PatchConfig(threshold=1.25)),
            ({"monotonicity": True}, PatchConfig("monotonic", threshold=1.0)),
            ({"threshold_add": 0.5}, PatchConfig("combined", 1.0, 0.5)),
            ({"patching_mode": "space"}, PatchConfig("space", 1.0)),
            ({"max_patch_length": 6, "patch_size": 3.0}, PatchConfig(size=3, max_length=6)),
        ]
        for change, expected in expectations:
            tree["data"]["patcher_args"] = {"threshold": 1.0} | change
            path.write_text(json.dumps(tree))
            found = load(folder).config.patching
            assert found == replace(expected, threshold=found.threshold)
            assert found.threshold == change.get("threshold", 1.0)

    def test_settings_that_are_left_out(self, tmp_path: Path, case: Case) -> None:
        """Only the numbers of heads have to be there."""
        folder = write_meta(case, tmp_path / "meta")
        heads = {f"n_heads_{part}": 2 for part in ("local_encoder", "local_decoder", "global")}
        tables = {"encoder_hash_byte_group_size": [3, 4, 5, 6, 7, 8]}
        (folder / "config.json").write_text(json.dumps({"args": heads | tables}))
        (folder / "entropy_model" / "params.json").write_text(
            json.dumps({"entropy_model": {"n_heads": 2, "rope_theta": None}})
        )
        config = load(folder).config
        assert config.entropy == BlockConfig(24, 2, 2, 40, 512, None, 10000.0)
        assert config.encoder == BlockConfig(16, 2, 2, 42, 512, None, 500000.0)
        assert config.hash == HashConfig((3, 4, 5, 6, 7, 8), 1, 53)
        assert config.patching == PatchConfig()

    def test_without_its_entropy_model(self, tmp_path: Path, case: Case) -> None:
        folder = write_meta(case, tmp_path / "meta")
        for path in (folder / "entropy_model").iterdir():
            path.unlink()
        (folder / "entropy_model").rmdir()
        config = load(folder).config
        assert (config.entropy, config.patching.mode) == (None, "byte")

    def test_an_entropy_model_alone_is_a_byte_lm(self, tmp_path: Path, case: Case) -> None:
        folder = write_meta(case, tmp_path / "meta") / "entropy_model"
        model = load(folder)
        assert isinstance(model, ByteLM)
        found = np.array(model.entropies(mx.array(case.ids)))
        np.testing.assert_allclose(found, case.entropies, atol=5e-5)

    def test_a_missing_number_of_heads(self, tmp_path: Path, case: Case) -> None:
        folder = write_meta(case, tmp_path / "meta")
        settings = json.loads((folder / "config.json").read_text())["args"]
        del settings["n_heads_global"], settings["n_heads"]
        (folder / "config.json").write_text(json.dumps({"args": settings}))
        assert "n_heads_global" in refusal(folder)

    @pytest.mark.parametrize("change", ["gap", "shape", "rows"])
    def test_odd_hash_tables(self, tmp_path: Path, case: Case, change: str) -> None:
        folder = write_meta(
            case, tmp_path / "meta", tables="fused" if change == "rows" else "split"
        )
        tensors = load_file(folder / "model.safetensors")
        name = f"encoder_hash_tok_embedding.{'1.' if change != 'rows' else ''}weight"
        value = tensors.pop(name)
        if change != "gap":
            tensors[name] = value[:-1]
        save_file(tensors, folder / "model.safetensors")
        words = {"gap": "0 to 5", "shape": "unequal shapes", "rows": "rows"}
        assert words[change] in refusal(folder)

    def test_a_tensor_is_missing(self, tmp_path: Path, case: Case) -> None:
        folder = write_meta(case, tmp_path / "meta")
        tensors = load_file(folder / "model.safetensors")
        del tensors["local_encoder.patch_embedding_projection.weight"]
        save_file(tensors, folder / "model.safetensors")
        assert "model.local_encoder.patch_embedding_projection.weight" in refusal(folder)

    def test_names_of_wrapped_modules(self, tmp_path: Path, case: Case) -> None:
        """Left by torch.compile and by distributed training."""
        folder = write_meta(case, tmp_path / "meta", pth=True)
        plain = load(folder)
        wrapped = {
            name.replace(".layers.", ".layers._orig_mod."): value
            for name, value in _main_tensors(case).items()
        }
        write_pth(folder / "consolidated.pth", {f"module.{k}": v for k, v in wrapped.items()})
        same_parameters(load(folder), plain)

    def test_parts_for_several_accelerators(self, tmp_path: Path, case: Case) -> None:
        folder = write_meta(case, tmp_path / "meta", pth=True)
        (folder / "consolidated.pth").rename(folder / "consolidated.00.pth")
        (folder / "consolidated.01.pth").write_bytes(b"")
        assert "merged" in refusal(folder)


def _main_tensors(case: Case) -> dict[str, np.ndarray]:
    from blt_checkpoints import meta_name

    return {meta_name(k): v for k, v in case.weights.items() if "patcher" not in k} | {
        "local_encoder.rope.freqs_cis": np.zeros(3, np.float32)
    }


class TestWhatDoesNotFit:
    def test_names_of_the_tensors(self, tmp_path: Path, case: Case) -> None:
        missing, odd = sorted(case.weights)[0], sorted(case.weights)[5]
        del case.weights[missing]
        case.weights[odd] = case.weights[odd][:1]
        case.weights["model.extra"] = np.zeros(3, np.float32)
        message = refusal(case.write_hf(tmp_path))
        for part in (
            f"1 missing ({missing})",
            "1 unexpected (model.extra)",
            f"1 wrongly shaped ({odd} ",
        ):
            assert part in message

    def test_only_the_first_ten(self, tmp_path: Path, case: Case) -> None:
        names = sorted(case.weights)
        case.weights = {}
        message = refusal(case.write_hf(tmp_path))
        assert f"{len(names)} missing" in message
        assert f"and {len(names) - 10} more" in message
        assert names[9] in message
        assert names[10] not in message

    def test_unexpected_tensors_may_be_allowed(self, tmp_path: Path, case: Case) -> None:
        case.weights["model.extra"] = np.zeros(3, np.float32)
        folder = case.write_hf(tmp_path)
        assert isinstance(load(folder, strict=False), BltModel)

    def test_integers_are_no_weights(self, tmp_path: Path, case: Case) -> None:
        name = "lm_head.weight"
        case.weights[name] = case.weights[name].astype(np.int32)
        assert f"1 of an unsupported number type ({name} mlx.core.int32)" in refusal(
            case.write_hf(tmp_path)
        )

    @pytest.mark.parametrize("part", [0, 4, 100, 0.5, 0.999])
    def test_cut_short(self, tmp_path: Path, case: Case, part: float) -> None:
        path = case.write_hf(tmp_path) / "model.safetensors"
        data = path.read_bytes()
        path.write_bytes(data[: int(part * len(data)) if isinstance(part, float) else part])
        assert "model.safetensors" in refusal(tmp_path)

    def test_shards(self, tmp_path: Path, case: Case) -> None:
        whole = load(case.write_hf(tmp_path))
        (tmp_path / "model.safetensors").unlink()
        weight_map = {}
        for i, names in enumerate(np.array_split(sorted(case.weights), 3)):
            file = f"model-0000{i + 1}-of-00003.safetensors"
            save_file({name: case.weights[name] for name in names}, tmp_path / file)
            weight_map |= {str(name): file for name in names}
        index = tmp_path / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": weight_map}))
        same_parameters(load(tmp_path), whole)

        (tmp_path / "model-00002-of-00003.safetensors").unlink()
        assert "1 of 3 weight files: model-00002-of-00003.safetensors" in refusal(tmp_path)
        index.write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))
        assert "outside" in refusal(tmp_path)
        index.write_text(json.dumps({"weight_map": ["a"]}))
        assert "weight_map" in refusal(tmp_path)

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            (None, "no config.json"),
            ("{", "not valid JSON"),
            ("[]", "list"),
            ('{"model_type": "llama"}', "llama"),
            ("{}", "None"),
            ('{"format": "mlx-companion-blt", "version": 9, "kind": "blt"}', "version 9"),
            ('{"format": "mlx-companion-blt", "version": 1, "kind": "x"}', "kind 'x'"),
            ('{"format": "mlx-companion-blt", "version": 1, "kind": "blt", "config": 3}', ""),
            (
                '{"format": "mlx-companion-blt", "version": 1, "kind": "blt", '
                '"config": {"wide": 3}}',
                "wide",
            ),
        ],
    )
    def test_configurations(self, tmp_path: Path, text: str | None, words: str) -> None:
        if text is not None:
            (tmp_path / "config.json").write_text(text)
        assert words in refusal(tmp_path)

    def test_no_weights(self, tmp_path: Path, case: Case) -> None:
        (case.write_hf(tmp_path) / "model.safetensors").unlink()
        assert "no weights" in refusal(tmp_path)

    def test_no_such_place(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        for x in (tmp_path / "no", str(tmp_path / "no"), "./no", "no", "a/b/c", tmp_path / "file"):
            with pytest.raises(ModelNotFoundError, match="folder"):
                load(x)
