"""The packages for other programs and formats are imported only where they are used."""

import subprocess
import sys

PACKAGES = ("av", "comfy_api", "onnx", "onnxruntime", "onnxscript", "spandrel", "vapoursynth")


def test_espan_imports_no_extras() -> None:
    """In a process where none of these packages can be imported."""
    code = (
        f"import sys\nsys.modules.update(dict.fromkeys({PACKAGES}))\nimport espan.cli, espan.fused"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
