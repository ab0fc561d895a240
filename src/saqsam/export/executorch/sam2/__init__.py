"""Traceable modules of SAM 2: image encoder, prompt encoder and mask decoder."""
