use std::sync::{Arc, OnceLock};

use resvg::{
    tiny_skia::{Pixmap, Transform},
    usvg::{Options, Tree, fontdb::Database},
};

use crate::Error;

/// Pixels per unit of the drawing: sharp on a dense screen.
const SCALE: f32 = 2.0;

/// Renders an SVG with the fonts that are part of the program: the same picture on every machine.
pub fn png(svg: &str) -> Result<Vec<u8>, Error> {
    let picture = |why: String| Error::Picture { why };
    let options = Options { fontdb: fonts(), ..Options::default() };
    let tree = Tree::from_str(svg, &options).map_err(|e| picture(e.to_string()))?;
    let size = tree.size();
    let (width, height) = ((size.width() * SCALE) as u32, (size.height() * SCALE) as u32);
    let mut pixmap = Pixmap::new(width, height)
        .ok_or_else(|| picture(format!("{width} × {height} pixels are not a picture")))?;
    resvg::render(&tree, Transform::from_scale(SCALE, SCALE), &mut pixmap.as_mut());
    pixmap.encode_png().map_err(|e| picture(e.to_string()))
}

fn fonts() -> Arc<Database> {
    static FONTS: OnceLock<Arc<Database>> = OnceLock::new();
    FONTS
        .get_or_init(|| {
            let mut fonts = Database::new();
            fonts.load_font_data(dejavu::sans::regular().to_vec());
            fonts.load_font_data(dejavu::sans::bold().to_vec());
            Arc::new(fonts)
        })
        .clone()
}
