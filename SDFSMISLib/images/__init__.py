"""Images: geometry, intensities, volumes, labelmaps, their files, post-processing. numpy and SimpleITK, no torch."""
