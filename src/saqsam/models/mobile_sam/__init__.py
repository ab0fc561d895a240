"""MobileSAM (arXiv 2306.14289): SAM v1's prompt encoder and mask decoder behind a TinyViT image encoder."""
