"""How `make lab` starts JupyterLab, which reads this folder beside the reader's own settings."""

import os

from ipykernel.ipkernel import IPythonKernel
from jupyter_server.services.contents.largefilemanager import AsyncLargeFileManager

STORED = {"name": "python"}  # what a notebook of the course says about its language


class Notebooks(AsyncLargeFileManager):
    """JupyterLab writes the version of Python into every notebook that it opens, which makes it a
    changed one. Here it finds the version there already, and the file holds it for nobody."""

    async def get(self, *args, **kwargs):
        model = await super().get(*args, **kwargs)
        return swap(model, STORED, IPythonKernel.language_info)

    async def save(self, model, path=""):
        return await super().save(swap(model, IPythonKernel.language_info, STORED), path)


def swap(model, old, new):
    if model["type"] == "notebook" and model.get("content"):
        metadata = model["content"]["metadata"]
        if metadata.get("language_info") == old:
            metadata["language_info"] = new
    return model


c = get_config()  # noqa: F821
c.ServerApp.contents_manager_class = Notebooks
c.ServerApp.allow_root = hasattr(os, "geteuid") and os.geteuid() == 0  # in a container
