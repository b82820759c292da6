"""Everything that persists: volumes, uploads, artifacts, the catalogue, and the words shared about them."""
