"""The ComfyUI node, with stubs of the modules of ComfyUI that it uses."""

import asyncio
import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

import espan
from espan import checkpoints
from espan.errors import EspanError
from espan.models import Architecture

FOLDER = Path(__file__).parents[1] / "integrations" / "comfyui"
SMALL = Architecture(8, (3, 2), scale=2, head_kernel=5)


class StoppedError(Exception):
    pass


class Comfy:
    """The state of the stubs: where models are, and what the node has called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.freed: list[tuple[int, torch.device]] = []
        self.steps = 0
        self.done = 0
        self.interrupt_at: int | None = None

    def modules(self) -> dict[str, ModuleType]:
        def declare(kind):
            return lambda name=None, **options: SimpleNamespace(kind=kind, name=name, **options)

        def interrupt():
            if self.done == self.interrupt_at:
                raise StoppedError

        def progress_bar(total):
            self.steps = total
            return SimpleNamespace(update=lambda n: setattr(self, "done", self.done + n))

        kinds = {
            kind: SimpleNamespace(Input=declare(kind), Output=declare(kind))
            for kind in ("Image", "Combo", "Int")
        }
        io = SimpleNamespace(
            ComfyNode=object,
            Schema=lambda **fields: SimpleNamespace(**fields),
            NodeOutput=lambda *results: SimpleNamespace(result=results),
            **kinds,
        )
        contents = {
            "comfy": {},
            "comfy.utils": {"ProgressBar": progress_bar},
            "comfy.model_management": {
                "get_torch_device": lambda: torch.device("cpu"),
                "intermediate_device": lambda: torch.device("cpu"),
                "free_memory": lambda n, device: self.freed.append((n, device)),
                "throw_exception_if_processing_interrupted": interrupt,
            },
            "comfy_api": {},
            "comfy_api.latest": {"io": io, "ComfyExtension": object},
            "folder_paths": {
                "get_filename_list": lambda kind: [p.name for p in (self.folder / kind).iterdir()],
                "get_full_path_or_raise": lambda kind, name: str(self.folder / kind / name),
            },
            "espan.spandrel": {},
        }
        modules = {name: ModuleType(name) for name in contents}
        for name, module in modules.items():
            vars(module).update(contents[name])
            parent, _, member = name.rpartition(".")
            if parent.startswith("comfy"):
                setattr(modules[parent], member, module)
        return modules


@pytest.fixture
def comfy(tmp_path, make_network, monkeypatch):
    (tmp_path / "upscale_models").mkdir()
    checkpoints.save(make_network(SMALL), tmp_path / "upscale_models/w.safetensors", record={})
    comfy = Comfy(tmp_path)
    for name, module in comfy.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    return comfy


def load():
    """Import the folder as ComfyUI does."""
    spec = importlib.util.spec_from_file_location("comfyui_espan", FOLDER / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def node(comfy):
    async def nodes():
        return await (await load().comfy_entrypoint()).get_node_list()

    (node,) = asyncio.run(nodes())
    return node


def upscale(node, image, weights="w.safetensors", precision="auto", tile=512):
    options = {"weights": weights, "precision": precision, "tile": tile}
    with torch.inference_mode():  # as ComfyUI
        (result,) = node.execute(image=image, **options).result
    return result


def smooth(*shape: int) -> torch.Tensor:
    """(B, H, W, C), on which networks of random weights stay in range."""
    batch, height, width, channels = shape
    coarse = torch.rand(batch, channels, 3, 3)
    size = (height, width)
    images = torch.nn.functional.interpolate(coarse, size, mode="bilinear")
    return images.permute(0, 2, 3, 1).contiguous() * 0.2


def one_by_one(comfy, images: torch.Tensor, **options) -> torch.Tensor:
    """What `Upscaler` returns for each image, without tiles."""
    weights = comfy.folder / "upscale_models/w.safetensors"
    upscaler = espan.Upscaler(weights, device="cpu", tile=None, **options)
    return torch.stack([upscaler(i.permute(2, 0, 1)).permute(1, 2, 0) for i in images])


def test_schema(comfy, node):
    schema = node.define_schema()
    assert (schema.node_id, schema.display_name) == ("EspanUpscale", "Upscale (espan)")
    assert [i.name for i in schema.inputs] == ["image", "weights", "precision", "tile"]
    assert schema.inputs[1].options == [*checkpoints.bundled(), "w.safetensors"]
    assert schema.inputs[1].default in schema.inputs[1].options
    assert schema.inputs[2].default in schema.inputs[2].options
    assert [o.kind for o in schema.outputs] == ["Image"]


@pytest.mark.parametrize("precision", ["auto", "fp32", "fp16", "bf16"])
def test_tensors(precision, comfy, node):
    """(B, H, W, C) in 0-1, contiguous, in the dtype of the input, on the CPU."""
    images = smooth(2, 6, 9, 3)
    result = upscale(node, images, precision=precision)
    assert (result.shape, result.dtype) == ((2, 12, 18, 3), torch.float32)
    assert result.is_contiguous()
    assert 0 <= result.min() < result.max() <= 1
    names = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
    assert torch.equal(result, one_by_one(comfy, images, dtype=names.get(precision)))
    assert upscale(node, images.half(), precision=precision).dtype == torch.float16


def test_fp16_on_a_gpu(comfy, node, monkeypatch):
    made = []

    def stop(path, changed, device, dtype):
        made.append((device.type, dtype))
        raise StoppedError

    function = sys.modules["comfy.model_management"]
    monkeypatch.setitem(node.execute.__func__.__globals__, "_upscaler", stop)
    for name in ("cuda", "mps"):
        monkeypatch.setattr(function, "get_torch_device", lambda n=name: torch.device(n))
        with pytest.raises(StoppedError):
            upscale(node, smooth(1, 3, 3, 3))
    assert made == [("cuda", torch.float16), ("cpu", None)]


@pytest.mark.parametrize("channels", [3, 4])
def test_tiles_are_seamless(channels, comfy, node):
    images = smooth(1, 70, 140, channels)
    result = upscale(node, images, tile=64)
    assert (result - one_by_one(comfy, images)).abs().max() < 2e-6
    assert comfy.steps == comfy.done == 2 * 3 * (channels - 2)


def test_small_images_run_together(comfy, node, monkeypatch):
    sizes = []
    call = espan.Upscaler.__call__
    monkeypatch.setattr(
        espan.Upscaler, "__call__", lambda self, x: (sizes.append(len(x)), call(self, x))[1]
    )
    images = smooth(7, 16, 32, 3)
    result = upscale(node, images, tile=40)
    assert sizes == [3, 3, 1]
    assert torch.equal(result, one_by_one(comfy, images))
    ((freed, device),) = comfy.freed
    assert freed > 4 * 40 * 40
    assert device.type == "cpu"


def test_alpha(comfy, node):
    """Of each image on its own: constant alpha stays, hidden colours are not used."""
    images = smooth(3, 8, 7, 4)
    images[0, ..., 3] = 1
    images[1, 2:5, 1:4] = 0
    assert torch.equal(upscale(node, images), one_by_one(comfy, images))
    assert (upscale(node, images[:1])[..., 3] == 1).all()
    assert comfy.steps == 1


def test_interruption(comfy, node):
    comfy.interrupt_at = 2
    with pytest.raises(StoppedError):
        upscale(node, smooth(1, 40, 40, 3), tile=16)
    assert comfy.done == 2


def test_bundled_and_replaced_weights(comfy, node, make_network):
    assert upscale(node, smooth(1, 3, 4, 3), weights="espan_x4").shape == (1, 12, 16, 3)
    image = smooth(1, 4, 4, 3)
    before = upscale(node, image)
    path = comfy.folder / "upscale_models/w.safetensors"
    checkpoints.save(make_network(SMALL.replace(scale=3), seed=1), path, record={})
    after = upscale(node, image)
    assert (before.shape[1], after.shape[1]) == (8, 12)


@pytest.mark.parametrize("shape", [(4, 4, 3), (1, 4, 4, 5), (0, 4, 4, 3)])
def test_bad_images(shape, node):
    with pytest.raises(EspanError, match=r"expected \(B, H, W, C\)"):
        upscale(node, torch.zeros(shape))


def test_importing_it_registers_with_spandrel(comfy, monkeypatch):
    monkeypatch.setitem(sys.modules, "espan.spandrel", None)
    with pytest.raises(ImportError, match=r"espan\.spandrel"):
        load()


def test_description():
    tomllib = pytest.importorskip("tomllib")
    about = tomllib.loads((FOLDER / "pyproject.toml").read_text("utf-8"))
    assert about["project"]["version"] == espan.__version__
    assert "espan" in about["project"]["dependencies"]
