"""`axion download`: a model's files into the local cache, so that serving needs no network."""

from __future__ import annotations

import asyncio
from functools import partial

from axion.cli.loading import progress
from axion.cli.options import LocalModel
from axion.hub.resolve import resolve
from axion.hub.snapshot import native_formats
from axion.settings import load_settings, model_folders


def download(model: LocalModel = None) -> None:
    """Download a model into the local cache, and print where it is.

    Only what serving it needs is fetched. The exit status is 1 when it cannot be had.
    """
    settings = load_settings(model_name=model)
    with progress() as show:
        found = asyncio.run(
            resolve(
                settings.model_name,
                on_progress=partial(show, "Downloading"),
                formats=native_formats(
                    allow_pickle=settings.allow_pickle,
                    trust_remote_code=settings.trust_remote_code,
                ),
                folders=model_folders(settings),
            )
        )
    print(found.path)
