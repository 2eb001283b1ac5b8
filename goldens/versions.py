"""Which references made a golden: written into each of them."""

from importlib.metadata import PackageNotFoundError, version


def of(*packages: str) -> dict[str, str]:
    """The installed version of each package, without its local build tag."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package).split("+")[0]
        except PackageNotFoundError:
            found[package] = "absent"
    return found


# llama.cpp has no version of its own in a source archive: the commit that was used.
LLAMA_CPP = "0c1e57098"
