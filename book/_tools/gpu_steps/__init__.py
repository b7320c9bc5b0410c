"""The steps of `gpu_report`: each module has a function ``run(record)``."""
