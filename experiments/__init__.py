"""Programs that need the checkout: the main job, the table of all systems, training curves."""
