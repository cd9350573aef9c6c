import { createTheme, type MantineColorsTuple } from '@mantine/core'

const sea: MantineColorsTuple = [
  '#e6fbf8', '#d3f3ee', '#a8e6dd', '#79d9cb', '#53cdbc', '#3bc6b2', '#2cb5a2', '#169a8a', '#067f72', '#006e62',
]

// Greys with a little of the sea in them, so that the dark theme is of one piece.
const dark: MantineColorsTuple = [
  '#c6ced3', '#b4bdc3', '#8e999f', '#68737a', '#3c454c', '#2f373d', '#262d32', '#1b2025', '#15191d', '#0f1215',
]

export const theme = createTheme({
  colors: { sea, dark },
  primaryColor: 'sea',
  primaryShade: { light: 8, dark: 6 },
  defaultRadius: 'md',
  fontFamily: 'Inter, ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif',
  fontFamilyMonospace: 'ui-monospace, "JetBrains Mono", SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace',
  headings: { fontWeight: '650' },
  cursorType: 'pointer',
  autoContrast: true,
})
