"""What all rooms use: files, locks, resumable stages, progress, random numbers, image grids, matching."""
