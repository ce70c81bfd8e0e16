//! Element operations from routes.
