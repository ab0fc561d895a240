"""SAM-HQ as torch modules to be traced: SAM v1's, with the features and the mask of the high-quality token."""
