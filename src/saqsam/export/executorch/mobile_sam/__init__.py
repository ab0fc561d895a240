"""Traceable modules of MobileSAM: its image encoder; prompt encoder and mask decoder are SAM v1's."""
