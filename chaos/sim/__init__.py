"""A deterministic simulator: the real core, driver and machine over simulated clocks, network and disks."""
