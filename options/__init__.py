"""The option files that ship, installed as ``sgpn_options``: ``sgpn options list`` names them."""
