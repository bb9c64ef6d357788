"""The factory: backbones by name and shared, modules built once, adapters, clear errors."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import threading
import types
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from patience import LONG
from slm_stand_ins import StandIn, answer, configured
from tiny import tiny_llama

from mlx_companion.errors import (
    AdapterError,
    ConfigError,
    HardwareError,
    ModelNotFoundError,
    SLMError,
)
from mlx_companion.lora import LoraConfig, adapter_parameters, attach, detach, save_adapter
from mlx_companion.models import load
from mlx_companion.runtime.config import load_config
from mlx_companion.slm import factory as factory_module
from mlx_companion.slm.backbone import BaseSLMAdapter, LanguageModelAdapter, shared_backbone
from mlx_companion.slm.config import SLMConfig
from mlx_companion.slm.factory import SLMFactory
from mlx_companion.slm.module import MODULES, SLMModule
from mlx_companion.slm.orchestrator import SLMOrchestrator
from mlx_companion.slm.packs import Pack, load_pack, save_pack
from mlx_companion.slm.packs import packaged as shipped_pack
from mlx_companion.slm.results import ResearchResult
from mlx_companion.slm.slms import SLMS
from mlx_companion.slm.views import AdaptedBackbone, CpuBackbone


class Counting(BaseSLMAdapter):
    """A backbone of random features that counts its passes."""

    def __init__(self, name: str = "counting") -> None:
        super().__init__(name)
        self.passes: list[list[str]] = []
        self.there = False

    @property
    def loaded(self) -> bool:
        return self.there

    @property
    def memory_bytes(self) -> int:
        return 2_000_000 if self.there else 0

    @property
    def identity(self) -> str:
        return "counting"

    def _load(self) -> None:
        self.there = True

    def _unload(self) -> None:
        self.there = False

    def _features(self, texts: Sequence[str]) -> np.ndarray:
        self.passes.append(list(texts))
        return np.array([[len(text), 1.0] for text in texts], dtype=np.float32)

    def _generate(self, prompt: Any, max_tokens: int) -> str:
        return "hello"


def test_the_promised_backbones_are_listed() -> None:
    factory = SLMFactory()
    listed = {one.name: one for one in factory.list_available()}
    assert {"phi3-mini", "mistral-tiny", "llama3-1b", "tinyllama", "phi2"} <= set(listed)
    assert set(SLMS) <= set(listed)
    assert next(iter(listed)) == "smollm2-135m"
    assert listed["phi3-mini"].source == "microsoft/Phi-3-mini-4k-instruct"
    assert listed["phi3-mini"].memory_mb is None


@pytest.mark.parametrize("name", [*SLMS, "owner/model"])
def test_a_backbone_of_a_name_is_one_object_and_not_loaded(name: str) -> None:
    factory = SLMFactory()
    slm = factory.get_slm(name)
    assert isinstance(slm, LanguageModelAdapter)
    assert not slm.loaded
    assert factory.get_slm(name) is slm
    assert SLMFactory().get_slm(name) is slm


def test_an_alias_its_hub_id_and_another_case_are_one_model() -> None:
    factory = SLMFactory()
    assert factory.get_slm("TinyLlama") is factory.get_slm("tinyllama")
    assert factory.get_slm("microsoft/phi-2") is factory.get_slm("phi2")
    assert factory.get_slm() is shared_backbone()


def test_an_unknown_backbone_names_the_nearest() -> None:
    with pytest.raises(ModelNotFoundError, match="did you mean 'phi3-mini'"):
        SLMFactory().get_slm("phi3-min")


def test_the_configured_model_is_the_default() -> None:
    factory = SLMFactory(SLMConfig(model="tinyllama"))
    assert factory.get_slm() is factory.get_slm("tinyllama")


def test_a_folder_is_a_backbone(tmp_path: Path) -> None:
    slm = SLMFactory().get_slm(str(tiny_llama(tmp_path / "model")))
    assert slm.features(["hi", "there"]).shape == (2, 64)
    assert slm.memory_bytes > 0


def test_backbones_can_be_registered() -> None:
    factory = SLMFactory()
    made = []

    def make() -> Counting:
        made.append(1)
        return Counting("mine")

    factory.register_slm("mine", make)
    assert made == []
    assert factory.get_slm("mine") is factory.get_slm("mine")
    assert len(made) == 1
    listed = {one.name: one for one in factory.list_available()}
    assert (listed["mine"].source, listed["mine"].loaded) == ("registered", False)
    factory.get_slm("mine").load()
    assert {one.name: one.memory_mb for one in factory.list_available()}["mine"] == 2.0
    ready = Counting("ready")
    factory.register_slm("ready", ready)
    assert factory.get_slm("ready") is ready


@pytest.mark.parametrize("name", ["phi2", "mine", " "])
def test_a_taken_name_is_refused(name: str) -> None:
    factory = SLMFactory()
    factory.register_slm("mine", Counting())
    with pytest.raises(ConfigError):
        factory.register_slm(name, Counting())
    factory.register_slm("phi2", other := Counting(), replace=True)
    assert factory.get_slm("phi2") is other


def test_a_maker_of_something_else_is_told() -> None:
    factory = SLMFactory()
    factory.register_slm("mine", lambda: "model")  # type: ignore[arg-type,return-value]
    with pytest.raises(SLMError, match="built a str; expected a BaseSLMAdapter"):
        factory.get_slm("mine")
    factory.register_module("drift_monitor", lambda: 7)  # type: ignore[arg-type,return-value]
    with pytest.raises(SLMError, match="built a int; expected an SLMModule"):
        factory.get_module("drift_monitor")


# Modules.


def test_a_module_is_built_once_however_many_ask() -> None:
    factory, built = SLMFactory(), []

    def make() -> StandIn:
        built.append(threading.get_ident())
        return StandIn("context_tracker")

    factory.register_module("context_tracker", make)
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: factory.get_module("context_tracker"), range(40)))
    assert len(found) == len(built) == 1
    assert factory.loaded_module("context_tracker") in found


def test_an_unknown_module_names_the_nearest() -> None:
    with pytest.raises(SLMError, match="did you mean 'drift_monitor'"):
        SLMFactory().get_module("drift_moniter")


def test_modules_of_your_own_join_the_four() -> None:
    factory = SLMFactory()
    factory.register_module("mine", StandIn("mine"))
    assert factory.module_names[-1] == "mine"
    assert factory.get_module("mine").version == "7"


def test_replacing_and_closing_let_go_of_modules() -> None:
    factory = SLMFactory()
    first, second = StandIn("context_tracker"), StandIn("context_tracker")
    factory.register_module("context_tracker", first)
    assert factory.get_module("context_tracker") is first
    factory.register_module("context_tracker", second)
    assert first.closed
    assert factory.get_module("context_tracker") is second
    factory.register_slm("mine", own := Counting())
    factory.get_slm("mine").load()
    factory.close()
    assert second.closed
    assert not own.loaded
    assert factory.loaded_module("context_tracker") is None


class Packaged(SLMModule[ResearchResult]):
    """What stands for a packaged module here: it takes what the real ones take."""

    name = "research_classifier"
    broken = False

    def __init__(
        self,
        *,
        pack: Pack | None = None,
        backbone: BaseSLMAdapter | None = None,
        confidence_threshold: float = 0.5,
    ) -> None:
        self.pack = pack
        self.backbone = backbone
        self.confidence_threshold = confidence_threshold

    def process_batch(self, items: Sequence[Any]) -> list[ResearchResult]:
        if self.backbone is not None:
            self.backbone.features([str(item) for item in items])
        return [answer(self.name, item) for item in items]  # type: ignore[misc]

    def fallback(self, item: Any) -> ResearchResult:
        return ResearchResult(False, 0.5, "by rule", "rule")


class PackagedTracker(Packaged):
    """The same for the tracker."""

    name = "context_tracker"


@pytest.fixture
def packaged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of the four modules come from a stand-in for their own files."""
    module = types.ModuleType("stand_in_of_a_module")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for cls in (Packaged, PackagedTracker):
        setattr(module, cls.__name__, cls)
        monkeypatch.setitem(factory_module.CLASSES, cls.name, f"{module.__name__}:{cls.__name__}")


@pytest.fixture
def packs(tmp_path: Path) -> Path:
    """Packs of the classifier: two good ones, and one whose weights were changed."""
    for version in ("mine", "better", "damaged"):
        save_pack(tmp_path / version, "research_classifier", version)
    with (tmp_path / "damaged" / "weights.safetensors").open("ab") as file:
        file.write(b"!")
    return tmp_path


@pytest.mark.usefixtures("packaged")
class TestPackagedModules:
    def test_settings_reach_the_module(self, packs: Path) -> None:
        own = "modules.research_classifier"
        given = {f"{own}.threshold": 0.8, f"{own}.pack": str(packs / "mine")}
        config = load_config(SLMConfig, None, given)
        built = SLMFactory(config).get_module("research_classifier")
        assert (built.confidence_threshold, built.pack.version) == (0.8, "mine")
        assert built.backbone is None
        active = SLMFactory(config, packs={"research_classifier": packs / "better"})
        assert active.get_module("research_classifier").pack.version == "better"

    def test_options_of_the_caller_come_first(self) -> None:
        given = {"research_classifier": {"confidence_threshold": 0.7}}
        assert (
            SLMFactory(options=given).get_module("research_classifier").confidence_threshold == 0.7
        )
        with pytest.raises(ConfigError, match="research_classifier has no 'colour' to set"):
            SLMFactory(options={"research_classifier": {"colour": 1}}).get_module(
                "research_classifier"
            )

    def test_modules_share_one_backbone_and_one_pass(self) -> None:
        factory = SLMFactory(configured(model="mine"))
        backbone = Counting("mine")
        factory.register_slm("mine", backbone)

        async def main() -> Any:
            own = SLMOrchestrator(factory=factory)
            names = ["research_classifier", "context_tracker"]
            await own.start(names)
            plan = own.get_execution_plan(names)
            await asyncio.gather(*(own.run_parallel("hello", names[:1]) for _ in range(5)))
            await own.run_parallel({names[0]: "hello", names[1]: "hello"})
            own.close()
            return plan

        plan = asyncio.run(main())
        assert plan.shared_passes == {"mine": ("research_classifier", "context_tracker")}
        # The first is the warm-up, which they share as well.
        assert backbone.passes == [["Good morning."], ["hello"]]

    def test_reloading_keeps_the_old_module_when_the_new_one_is_damaged(self, packs: Path) -> None:
        factory = SLMFactory()
        old = factory.get_module("research_classifier")
        with pytest.raises(SLMError, match="damaged"):
            factory.reload("research_classifier", packs / "damaged")
        assert factory.get_module("research_classifier") is old
        new = factory.reload("research_classifier", packs / "better")
        assert factory.get_module("research_classifier") is new is not old
        assert new.pack.version == "better"
        assert factory.reload("research_classifier").pack.version == "better"

    def test_a_module_that_cannot_be_loaded_still_has_its_rules(self, packs: Path) -> None:
        factory = SLMFactory(configured(), packs={"research_classifier": packs / "damaged"})

        async def main() -> Any:
            own = SLMOrchestrator(factory=factory)
            try:
                return await own.run_parallel("hello", ["research_classifier"])
            finally:
                own.close()

        outcome = asyncio.run(main())["research_classifier"]
        assert (outcome.status, outcome.fallback) == ("unavailable", "keyword rule")
        assert outcome.result.reasoning == "by rule"

    def test_gpu_on_is_an_error_without_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("mlx_companion.runtime.device.is_cpu", lambda: True)
        config = load_config(SLMConfig, None, {"resources.gpu": "on"})
        with pytest.raises(HardwareError, match="set it to 'auto' or 'off'"):
            SLMFactory(config).get_module("research_classifier")

    def test_gpu_off_keeps_the_backbone_on_the_cpu(self, tmp_path: Path) -> None:
        model = str(tiny_llama(tmp_path / "model"))
        settings = {"resources.gpu": "off", "model": model, "resources.threads": 1}
        built = SLMFactory(load_config(SLMConfig, None, settings)).get_module("research_classifier")
        assert isinstance(built.backbone, CpuBackbone)
        plain = LanguageModelAdapter(model).features(["hello"])
        np.testing.assert_allclose(built.backbone.features(["hello"]), plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MODULES)
def test_every_module_takes_a_pack_or_its_folder(name: str) -> None:
    folder, cls = shipped_pack(name), factory_module.module_class(name)
    versions = {cls(pack=one).version for one in (folder, str(folder), load_pack(folder), None)}
    assert versions == {load_pack(folder, name).version}


def test_a_module_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(factory_module.CLASSES, "drift_monitor", "mlx_companion.no_such:Thing")
    with pytest.raises(SLMError, match="drift_monitor cannot be imported"):
        SLMFactory().get_module("drift_monitor")


# Adapters.


@pytest.fixture
def adapted(tmp_path: Path) -> tuple[LanguageModelAdapter, Path]:
    """A tiny backbone, and an adapter for it that changes what it says."""
    lm = load(tiny_llama(tmp_path / "model"))
    config = LoraConfig(rank=4)
    attach(lm.model, config)
    parameters = adapter_parameters(lm.model)
    mx.random.seed(3)
    lm.model.load_weights(
        [(name, mx.random.normal(value.shape)) for name, value in parameters.items()], strict=False
    )
    mx.eval(lm.model.parameters())
    save_adapter(tmp_path / "adapter", lm.model, config, lm.base_sha256)
    detach(lm.model)
    return LanguageModelAdapter(lm), tmp_path / "adapter"


def test_an_adapter_changes_what_is_generated_and_not_the_features(
    adapted: tuple[LanguageModelAdapter, Path],
) -> None:
    shared, folder = adapted
    before, features = shared.generate("Say it", 12), shared.features(["hello"])
    guard = AdaptedBackbone(shared, "personality_guard", folder)
    own = guard.generate("Say it", 12)
    assert own != before
    assert guard.generate("Say it", 12) == own
    assert shared.generate("Say it", 12) == before
    np.testing.assert_array_equal(guard.features(["hello"]), features)
    assert guard.identity == shared.identity
    assert guard.memory_bytes == shared.memory_bytes
    guard.unload()
    assert shared.loaded


def test_two_modules_have_an_adapter_each_on_one_model(
    adapted: tuple[LanguageModelAdapter, Path],
) -> None:
    shared, folder = adapted
    one, two = (AdaptedBackbone(shared, name, folder) for name in ("one", "two"))
    with ThreadPoolExecutor(3) as pool:
        said = list(pool.map(lambda slm: slm.generate("Say it", 8), [one, shared, two] * 3))
    assert said[0] == said[2] != said[1]
    assert said[3:6] == said[:3]


def test_two_adapters_of_one_module_are_told_apart(
    adapted: tuple[LanguageModelAdapter, Path], tmp_path: Path
) -> None:
    # Those of two companions in one process, which share the backbone.
    shared, folder = adapted
    lm, config = shared.language_model, LoraConfig(rank=4)
    # A fresh one changes nothing.
    attach(lm.model, config)
    save_adapter(tmp_path / "fresh", lm.model, config, lm.base_sha256)
    detach(lm.model)
    one = AdaptedBackbone(shared, "personality_guard", folder)
    two = AdaptedBackbone(shared, "personality_guard", tmp_path / "fresh")
    plain = shared.generate("Say it", 8)
    assert one.generate("Say it", 8) != plain
    assert two.generate("Say it", 8) == plain


def test_an_adapter_that_was_trained_again_is_read_again(
    adapted: tuple[LanguageModelAdapter, Path], tmp_path: Path
) -> None:
    shared, folder = adapted
    lm, config, place = shared.language_model, LoraConfig(rank=4), tmp_path / "mine"
    # A fresh one changes nothing.
    attach(lm.model, config)
    save_adapter(place, lm.model, config, lm.base_sha256)
    detach(lm.model)
    plain = shared.generate("Say it", 8)
    own = AdaptedBackbone(shared, "other", folder).generate("Say it", 8)
    guard = AdaptedBackbone(shared, "personality_guard", place)
    assert guard.generate("Say it", 8) == plain != own
    # Half of a copy: what was read before goes on.
    shutil.copy(folder / "adapters.safetensors", place)
    assert guard.generate("Say it", 8) == plain
    shutil.copy(folder / "adapter_config.json", place)
    assert guard.generate("Say it", 8) == own
    # For another companion in the process, too.
    assert AdaptedBackbone(shared, "personality_guard", place).generate("Say it", 8) == own
    shutil.rmtree(place)
    assert guard.generate("Say it", 8) == own


def test_a_wrong_adapter_is_told_when_it_is_loaded(
    adapted: tuple[LanguageModelAdapter, Path], tmp_path: Path
) -> None:
    with pytest.raises(AdapterError):
        AdaptedBackbone(adapted[0], "x", tmp_path / "nothing").load()


def test_modules_that_are_built_at_once_are_imported_one_by_one() -> None:
    code = (
        "import mlx_companion, asyncio\n"
        "from mlx_companion.slm.factory import CLASSES, module_class\n"
        "from mlx_companion.slm.lanes import Lane\n"
        "async def main():\n"
        "    work = [Lane(n).run(lambda n=n: module_class(n).name, 100) for n in CLASSES]\n"
        "    print(sorted(done.value for done in await asyncio.gather(*work)))\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONG)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(sorted(factory_module.CLASSES))
