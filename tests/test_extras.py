"""The packages for other programs and formats are imported only where they are used."""

from tests.test_sources import imported_at_once, sources

PACKAGES = {"av", "onnx", "onnxruntime", "spandrel", "vapoursynth"}
USERS = {"espan.onnx_graph", "espan.spandrel", "espan.vapoursynth"}
USERS |= {
    f"espan.video.{name}"
    for name in ("decode", "encode", "join", "pixel_formats", "planes", "run", "source")
}


def test_extras_are_imported_only_where_they_are_used() -> None:
    """No other module imports such a package, or a module that does, before it is needed."""
    users = set()
    for module, tree in sources("espan").items():
        names = imported_at_once(tree)
        assert module in USERS or not names & USERS, module
        if {name.partition(".")[0] for name in names} & PACKAGES:
            users.add(module)
    assert users == USERS
