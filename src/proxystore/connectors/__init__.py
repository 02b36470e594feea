"""Where bytes live: adapters of storage back ends to one small interface."""
