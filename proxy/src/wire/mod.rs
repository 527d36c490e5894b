//! The PostgreSQL protocol, as far as a relay has to know it. Pure: bytes in, decisions out.

pub mod control;
pub mod egress;
pub mod header;
pub mod inquiry;
pub mod kept;
pub mod lane;
pub mod naming;
pub mod open_block;
pub mod outcome;
pub mod reply;
pub mod startup;
pub mod statements;
pub mod tracker;
