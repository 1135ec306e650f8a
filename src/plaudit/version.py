"""The version of Plaudit, and of the libraries that decide a result."""

from collections.abc import Iterable

__version__ = "0.1.0.dev0"


def installed_versions(
    packages: Iterable[str] = ("transformers", "torch", "accelerate", "datasets", "peft"),
) -> dict[str, str]:
    """Returns the versions of Plaudit, Python and those packages that are installed."""
    import platform  # here: `plaudit --help` needs only the version
    from importlib import metadata

    installed = {"plaudit": __version__, "python": platform.python_version()}
    for package in packages:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return installed
