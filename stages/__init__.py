"""One module per stage of the pipeline: load, one library call, save."""
