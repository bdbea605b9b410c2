"""The machine: devices, precision, threads, and how networks compute there faster than layer by layer."""
