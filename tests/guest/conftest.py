"""These tests boot machines: they run when asked for by path (``pytest tests/guest``), not with the others."""


def pytest_ignore_collect(collection_path, config):
    return None if any("guest" in arg for arg in config.args) else True
