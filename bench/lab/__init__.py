"""The lab: real traffic by real programs between network namespaces, recorded and labelled by ourselves."""
