"""What networks, losses and views compute on a GPU in fewer kernels than torch's."""
