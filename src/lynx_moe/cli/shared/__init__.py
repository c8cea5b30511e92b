"""What commands share: their options, how a mistake ends, the versions found."""
