"""Run the notebook in a folder with data/models/dense and keep what it puts out: `python docs/_execute.py FOLDER`."""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent / "start/first_steps.ipynb"

notebook = nbformat.read(NOTEBOOK, 4)
NotebookClient(notebook, timeout=600, resources={"metadata": {"path": sys.argv[1]}}).execute()
for cell in notebook.cells:
    cell.metadata.pop("execution", None)  # times
    if "outputs" in cell:
        cell.outputs = [output for output in cell.outputs if output.output_type != "stream"]
nbformat.write(notebook, NOTEBOOK)
