"""The browser of this machine."""

import shutil

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def executable() -> str | None:
    """Path of a Chromium executable, if there is one."""
    return next(filter(None, map(shutil.which, NAMES)), None)
