//! New images.

use js_sys::Function;
use oxcow::create::{self, CreateOptions};
use oxcow::qcow2::{Compression, Version};
use oxcow::{Backing, Error, File, Image, OpenOptions, Preallocation, Result, Role};
use wasm_bindgen::prelude::*;

use crate::control::Control;
use crate::error::to_record;
use crate::image::{EngineImage, JsOpenOptions, JsResult};
use crate::resolve::JsResolver;
use crate::storage::{JsSource, WebStorage};

#[wasm_bindgen]
extern "C" {
    /// `EngineCreateOptions` of the package.
    pub type JsCreateOptions;

    #[wasm_bindgen(method, getter)]
    fn size(this: &JsCreateOptions) -> Option<u64>;
    #[wasm_bindgen(method, getter)]
    fn version(this: &JsCreateOptions) -> Option<String>;
    #[wasm_bindgen(method, getter, js_name = clusterSize)]
    fn cluster_size(this: &JsCreateOptions) -> Option<f64>;
    #[wasm_bindgen(method, getter, js_name = refcountBits)]
    fn refcount_bits(this: &JsCreateOptions) -> Option<f64>;
    #[wasm_bindgen(method, getter, js_name = extendedL2)]
    fn extended_l2(this: &JsCreateOptions) -> bool;
    #[wasm_bindgen(method, getter, js_name = lazyRefcounts)]
    fn lazy_refcounts(this: &JsCreateOptions) -> bool;
    #[wasm_bindgen(method, getter, js_name = compressionType)]
    fn compression_type(this: &JsCreateOptions) -> Option<String>;
    #[wasm_bindgen(method, getter)]
    fn preallocation(this: &JsCreateOptions) -> Option<String>;
    #[wasm_bindgen(method, getter)]
    fn backing(this: &JsCreateOptions) -> Option<JsSource>;
    #[wasm_bindgen(method, getter, js_name = backingName)]
    fn backing_name(this: &JsCreateOptions) -> Option<String>;
    #[wasm_bindgen(method, getter, js_name = backingFormat)]
    fn backing_format(this: &JsCreateOptions) -> Option<String>;
    #[wasm_bindgen(method, getter, js_name = dataFile)]
    fn data_file(this: &JsCreateOptions) -> Option<JsSource>;
    #[wasm_bindgen(method, getter, js_name = dataFileRaw)]
    fn data_file_raw(this: &JsCreateOptions) -> bool;
}

/// The option that is called so.
pub(crate) fn preallocation(name: &str) -> Result<Preallocation> {
    match name {
        "off" => Ok(Preallocation::Off),
        "metadata" => Ok(Preallocation::Metadata),
        "falloc" => Ok(Preallocation::Falloc),
        "full" => Ok(Preallocation::Full),
        other => Err(unknown("preallocation", other)),
    }
}

fn unknown(option: &str, value: &str) -> Error {
    Error::OutOfRange(format!("Invalid parameter '{value}' for '{option}'").into())
}

impl JsCreateOptions {
    pub(crate) fn options(&self) -> Result<CreateOptions> {
        let defaults = CreateOptions::default();
        Ok(CreateOptions {
            size: self.size().unwrap_or(0),
            version: match self.version().as_deref() {
                None | Some("1.1") => Version::V3,
                Some("0.10") => Version::V2,
                Some(other) => return Err(unknown("version", other)),
            },
            cluster_size: self
                .cluster_size()
                .map_or(defaults.cluster_size, |size| size as u64),
            refcount_bits: self
                .refcount_bits()
                .map_or(defaults.refcount_bits, |bits| bits as u64),
            extended_l2: self.extended_l2(),
            lazy_refcounts: self.lazy_refcounts(),
            compression: match self.compression_type().as_deref() {
                None | Some("zlib") => Compression::Zlib,
                Some("zstd") => Compression::Zstd,
                Some(other) => return Err(unknown("compressionType", other)),
            },
            preallocation: match self.preallocation() {
                Some(name) => preallocation(&name)?,
                None => Preallocation::Off,
            },
            backing_file: self.backing_name(),
            backing_format: self.backing_format(),
            data_file: self.data_file().map(|source| source.name()),
            data_file_raw: self.data_file_raw(),
            ..defaults
        })
    }
}

/// The disk's size and the format of a backing file, which is opened alone for that.
async fn look_at(file: File<WebStorage>, format: Option<&str>) -> Result<(u64, &'static str)> {
    let options = OpenOptions {
        format: format.map(str::parse).transpose()?,
        backing: Backing::Ignore,
        data_file: false,
        ..OpenOptions::default()
    };
    let image = Image::open(file, &options, &JsResolver::new(None)).await?;
    Ok((image.virtual_size(), image.top().format().name()))
}

/// Writes a new image into `file`, and tells `resolver` the files that it names.
pub(crate) async fn create(
    file: &File<WebStorage>,
    wanted: &JsCreateOptions,
    resolver: &JsResolver,
) -> Result<()> {
    let mut new = wanted.options()?;
    if let Some(backing) = wanted.backing() {
        let name = backing.name();
        let storage = WebStorage::new(backing);
        let backing = File {
            storage: storage.clone(),
            name: name.clone(),
        };
        let (size, format) = look_at(backing, new.backing_format.as_deref()).await?;
        new.backing_format.get_or_insert(format.to_owned());
        let recorded = new.backing_file.get_or_insert(name).clone();
        if wanted.size().is_none() {
            new.size = size;
        }
        // What was read of it to learn that is still there when the image asks for it.
        resolver.knows(Role::Backing, 1, (&file.name, &recorded), storage);
    } else if wanted.size().is_none() {
        return Err(Error::OutOfRange(
            "A new image without a backing file needs a size".into(),
        ));
    }
    let mut data_file = None;
    if let Some(source) = wanted.data_file() {
        let name = source.name();
        let storage = WebStorage::new(source);
        resolver.knows(Role::DataFile, 0, (&file.name, &name), storage.clone());
        data_file = Some(storage);
    }
    create::create(&file.storage, data_file.as_ref(), &new).await
}

#[wasm_bindgen]
impl EngineImage {
    /// Writes a new image in place of what is there, and opens it.
    pub async fn create(
        source: JsSource,
        wanted: JsCreateOptions,
        options: JsOpenOptions,
        resolve: Function,
        control: Control,
    ) -> JsResult<EngineImage> {
        let created = async {
            let file = File {
                name: source.name(),
                storage: WebStorage::new(source),
            };
            let options = options.options()?;
            let resolver = JsResolver::new(Some(resolve));
            create(&file, &wanted, &resolver).await?;
            Self::open_file(file, options, resolver).await
        };
        control
            .run(created)
            .await
            .map_err(|error| to_record(&error))
    }
}
