"""The ticket layer: etypes, the Kerberos messages KINK carries, and who authenticates with them."""
