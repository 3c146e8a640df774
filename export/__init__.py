"""Export PyTorch networks into proven bundles; ``export_model`` is the job, ``export-model`` the command."""
