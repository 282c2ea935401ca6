"""Add or re-embed many images: folders, archives, stored pictures, and Ray clusters."""
