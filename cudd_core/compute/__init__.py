"""The machine: devices, precision, threads, and faster ways to compute networks than layer by layer."""
