"""Run All of one notebook: python run_alone.py NOTEBOOK EXECUTED.

Not nbclient, because that one answers widgets while a cell runs, and the end of the cell then
sometimes gets lost in the kernel of ipykernel 6.17: a hang, in about one run of four.
"""

import sys

import nbformat
from jupyter_client.manager import start_new_kernel

OUTPUTS = ("stream", "display_data", "execute_result", "error")


def run(notebook) -> str:
    """Execute all code cells, with their outputs. Returns what went wrong, or an empty string."""
    manager, client = start_new_kernel(kernel_name="python3")
    try:
        for cell in [cell for cell in notebook.cells if cell.cell_type == "code"]:
            said = []
            # Or the kernel, having met an error that is expected, might refuse the next cell.
            options = dict(timeout=600, stop_on_error=False, output_hook=said.append)
            reply = client.execute_interactive(cell.source, **options)
            said = [message for message in said if message["msg_type"] in OUTPUTS]
            cell.outputs = [nbformat.v4.output_from_msg(message) for message in said]
            end, tags = reply["content"], cell.metadata.get("tags", [])
            if end["status"] != "ok" and "raises-exception" not in tags:
                return f"{cell.id}: {end['ename']}: {end['evalue']}"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    return ""


if __name__ == "__main__":
    source, executed = sys.argv[1:]
    notebook = nbformat.read(source, 4)
    wrong = run(notebook)
    nbformat.write(notebook, executed)
    sys.exit(wrong or 0)
