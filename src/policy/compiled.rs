//! stub
#[derive(Debug)]
pub struct CompiledPackage {}
