"""Traceable modules of SAM 3's tracker: its image encoder; prompt encoder and mask decoder are SAM 2's."""
