pub mod guard;
pub mod route;
pub mod scram;
pub mod wire;
